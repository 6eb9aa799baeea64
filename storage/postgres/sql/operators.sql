-- The operators after a name, in order.
SELECT row_to_json(answer)::text
FROM (
    SELECT name, role, password_hash, epoch_ms(created_at) AS created_at
    FROM operators
    WHERE name > $1
    ORDER BY name
    LIMIT $2
) AS answer
