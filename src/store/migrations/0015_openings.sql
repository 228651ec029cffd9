-- The mark of the last opening, by which a write-ahead log and its database are known to belong
-- together: see store/belong.rs.

CREATE TABLE openings (
    id   bigint PRIMARY KEY CHECK (id = 1),
    mark {text} NOT NULL
);
