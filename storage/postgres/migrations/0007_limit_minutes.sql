-- Plans define their limits in hours, usage is counted in minutes: to the nearest one, so
-- that ten minutes are ten however few decimals of 10/60 were written; half of one is not
-- given away. So a limit is never half a minute more than what was asked for.
CREATE OR REPLACE FUNCTION limit_minutes(p_hours numeric) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT ceil(p_hours * 60 - 0.5)::integer $$;
