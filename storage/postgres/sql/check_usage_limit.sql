-- Whether a user may record at an instant, and the limit that decides it.
SELECT row_to_json(answer)::text FROM check_usage_limit($1, $2, instant($3)) AS answer
