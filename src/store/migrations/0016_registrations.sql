-- Registrations that wait for the proof of their address, and accounts whose address or name is vouched
-- for: by a proof, or by the staff who made them.
CREATE TABLE registrations (
    id            {id},
    email         {text} NOT NULL,
    name          {text} NOT NULL,
    password_hash {text} NOT NULL,
    language      {text},
    token_hash    {text} UNIQUE,
    expires_at    bigint NOT NULL
);
CREATE INDEX registrations_expiry ON registrations (expires_at);

ALTER TABLE users ADD COLUMN proven_at bigint;
