-- Gives an account the allotment of a tier for a month, unless that is given; answers the
-- account's allotments that Redis has not confirmed.
SELECT row_to_json(waiting)::text
FROM post_allotment($1, $2, $3, $4, $5, $6, $7, $8) AS waiting
