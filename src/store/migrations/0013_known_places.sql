-- Where each account has logged in from: a digest of the network, or of the token in a browser's device
-- cookie. Strangers who guess at an account do not shut out a caller from such a place.
CREATE TABLE known_places (
    place_hash {text} NOT NULL,
    user_id    bigint NOT NULL REFERENCES users (id),
    kind       {text} NOT NULL CHECK (kind IN ('address', 'device')),
    seen_at    bigint NOT NULL,
    PRIMARY KEY (place_hash, user_id)
) {clustered};
CREATE INDEX known_places_user ON known_places (user_id, kind, seen_at);
CREATE INDEX known_places_unused ON known_places (seen_at);
