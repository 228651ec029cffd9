-- Names as they are searched for, whatever their case. The program folds them, since databases know the
-- letters A to Z alike and no others: names of those are folded here, and where this is NULL, the server does
-- it when it starts.
ALTER TABLE users ADD COLUMN folded_name {text};
UPDATE users SET folded_name = lower(name) WHERE octet_length(name) = length(name);
DROP INDEX users_name;
CREATE INDEX users_folded_name ON users (folded_name, id);
