-- One organisation's plan.
SELECT row_to_json(organization)::text FROM organizations AS organization WHERE tenant = $1
