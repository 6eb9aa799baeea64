-- Usage by day in the organisation's time zone, from a day up to the day before another.
SELECT row_to_json(answer)::text FROM get_usage_details($1, $2, $3, $4) AS answer
