-- Whose clients count for themselves, was a word in the metadata, which a browser writes too.
-- Sessions that have ended keep theirs: nothing asks for it any more.
ALTER TABLE sessions ADD COLUMN is_reported boolean NOT NULL DEFAULT false;
UPDATE sessions
SET is_reported = true, metadata = nullif(metadata - 'tracked', '{}')
WHERE state = 'live' AND metadata -> 'tracked' = 'true'
  AND terms -> 'counts_minutes' = 'true' AND terms -> 'price_micros' = '0';
