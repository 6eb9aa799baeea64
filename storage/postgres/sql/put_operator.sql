-- Makes an operator; answers nothing where the name is taken.
INSERT INTO operators (name, role, password_hash)
VALUES ($1, $2, $3)
ON CONFLICT (name) DO NOTHING
RETURNING true
