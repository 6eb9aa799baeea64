-- A backend that posts or voids a hold need not say whose it is: its id is nobody else's.
CREATE INDEX credit_holds_by_id ON credit_holds (hold_id);
