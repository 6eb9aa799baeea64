-- The number of a new change of a plan or a limit, above those of all earlier changes.
SELECT nextval('plan_changes')
