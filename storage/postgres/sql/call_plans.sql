-- What backends put for a call's id ($1), of one provider ($2) or of all.
SELECT row_to_json(answer)::text
FROM (
    SELECT provider, call_id, version, plan, epoch_ms(changed_at) AS changed_at
    FROM calls
    WHERE call_id = $1 AND ($2::text IS NULL OR provider = $2)
    ORDER BY provider
) AS answer
