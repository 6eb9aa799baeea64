-- What a tier gives an account for a month, unless it is given; answers the account's
-- allotments that Redis has not confirmed.
SELECT row_to_json(waiting)::text
FROM post_allotment($1, $2, $3, $4, $5, $6, $7, $8) AS waiting
