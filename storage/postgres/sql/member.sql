-- One member's own limit.
SELECT row_to_json(member)::text
FROM organization_members AS member
WHERE tenant = $1 AND user_id = $2
