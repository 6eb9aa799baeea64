-- The tenant of the hold with an id; null where there is no such hold, or more than one.
SELECT CASE count(*) WHEN 1 THEN min(tenant) END FROM credit_holds WHERE hold_id = $1
