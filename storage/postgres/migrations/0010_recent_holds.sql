-- Which holds Redis may know otherwise after it lost its last writes.
CREATE INDEX credit_holds_recent ON credit_holds (changed_at);
