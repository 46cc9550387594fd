-- Appends an entry to the audit log, and removes those that are too old or too many. Returns its id.
local entry_id = redis.call('XADD', audit_key, 'MAXLEN', '~', max_entries, '*', 'entry', entry)
local oldest_s = tonumber(redis.call('TIME')[1]) - tonumber(retention_s)
redis.call('XTRIM', audit_key, 'MINID', '~', string.format('%.0f', oldest_s * 1000))
redis.call('EXPIRE', audit_key, retention_s)
return entry_id
