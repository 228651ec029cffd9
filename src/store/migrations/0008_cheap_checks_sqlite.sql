-- SQLite alone: PostgreSQL's lists cost nothing. The faster procedure of
-- <https://sqlite.org/lang_altertable.html#otheralter>, which is meant for constraints; the indexes
-- made above tell other connections that the schema is another.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (state IN
        (''scheduled'', ''available'', ''running'', ''retryable'', ''completed'', ''cancelled'', ''discarded''))',
    'CHECK (state = ''available'' OR state = ''running'' OR state = ''completed'' OR state = ''scheduled''
        OR state = ''retryable'' OR state = ''cancelled'' OR state = ''discarded'')')
    WHERE type = 'table' AND name = 'tasks';
UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (lock_until IN (''started'', ''finished'', ''expired''))',
    'CHECK (lock_until = ''started'' OR lock_until = ''finished'' OR lock_until = ''expired'')')
    WHERE type = 'table' AND name = 'tasks';
UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (until_state IN (''started'', ''finished'', ''expired''))',
    'CHECK (until_state = ''started'' OR until_state = ''finished'' OR until_state = ''expired'')')
    WHERE type = 'table' AND name = 'task_locks';
UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (status IN
        (''pending_payment'', ''paid'', ''processed'', ''fulfilled'', ''cancelled'', ''expired'', ''refund_due''))',
    'CHECK (status = ''pending_payment'' OR status = ''paid'' OR status = ''processed'' OR status = ''fulfilled''
        OR status = ''cancelled'' OR status = ''expired'' OR status = ''refund_due'')')
    WHERE type = 'table' AND name = 'orders';
PRAGMA writable_schema = RESET;
