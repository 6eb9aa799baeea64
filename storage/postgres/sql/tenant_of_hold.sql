-- The tenant of the only hold of an id; null where there is none, or another beside it.
SELECT CASE count(*) WHEN 1 THEN min(tenant) END FROM credit_holds WHERE hold_id = $1
