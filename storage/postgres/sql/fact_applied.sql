-- Marks a fact as applied ($3, epoch ms).
UPDATE call_facts SET state = 'applied', applied_at = instant($3)
WHERE provider = $1 AND fact_key = $2 AND state <> 'applied'
