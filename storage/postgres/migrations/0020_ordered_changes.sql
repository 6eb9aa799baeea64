-- An order of the changes of plans and limits. A change takes its number before it is written, and
-- each value keeps the number of the change that set it. So a change that comes late, or is written
-- again because its answer was lost, does not undo a newer one.
CREATE SEQUENCE plan_changes;

ALTER TABLE organizations
    ADD COLUMN tier_change bigint NOT NULL DEFAULT 0,
    ADD COLUMN timezone_change bigint NOT NULL DEFAULT 0,
    ADD COLUMN limit_change bigint NOT NULL DEFAULT 0,
    ADD COLUMN overage_change bigint NOT NULL DEFAULT 0;

ALTER TABLE organization_members
    ADD COLUMN limit_change bigint NOT NULL DEFAULT 0;
