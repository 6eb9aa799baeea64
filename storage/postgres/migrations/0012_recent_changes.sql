-- Which limits, operations and adjustments Redis may know otherwise after it lost its last
-- writes. Null: a limit has not changed since this column is there.
CREATE INDEX operations_usage_recent ON operations_usage (created_at);
CREATE INDEX minute_adjustments_newest ON minute_adjustments (created_at);
-- Last, for they keep everybody out until the end.
ALTER TABLE organizations ADD COLUMN changed_at timestamptz;
ALTER TABLE organization_members ADD COLUMN changed_at timestamptz;
CREATE INDEX organizations_recent ON organizations (changed_at);
CREATE INDEX organization_members_recent ON organization_members (changed_at);
