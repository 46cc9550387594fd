-- What every script about one job may call. The script defines `job_key` and `events_key` (by their
-- parameters or as locals) and has the argument `ttl_s`. `keys`, `metrics` and `limits` are generated
-- by tasks/state/scripts.py.

-- include: fleet.lua

local job_id = string.sub(job_key, #keys.job_prefix + 1)
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])

-- The job's hash and events -----------------------------------------------------------------------

local function get(field) return redis.call('HGET', job_key, field) end

local function exists() return redis.call('EXISTS', job_key) == 1 end

-- One text: the client parses a reply of many parts slowly.
local function all_fields() return cjson.encode(redis.call('HGETALL', job_key)) end

local function set(fields)
  for field, value in pairs(fields) do redis.call('HSET', job_key, field, value) end
end

local function unset(...) redis.call('HDEL', job_key, ...) end

local function append_event(event)
  redis.call('XADD', events_key, 'MAXLEN', '~', limits.events, '*', keys.event_field, event)
end

local function append_events(events)
  for _, event in ipairs(events) do append_event(event) end
end

local function renew_ttl(key) redis.call('EXPIRE', key, ttl_s) end

-- Ends every script that has changed the job.
local function save()
  set({updated_at = now})
  renew_ttl(job_key)
  renew_ttl(events_key)
end

local function has_ended()
  local status = get('status')
  return status == 'succeeded' or status == 'failed' or status == 'cancelled'
end

-- Fences a write: `attempt` is a string, and so is the field.
local function is_superseded(attempt) return get('attempt') ~= attempt or has_ended() end

-- A delivery moves its tag out of this index when it takes the message from its worker, and each
-- delivery has a tag of its own: so the tag says whether the stage's worker still has its message.
local function is_message_held(unacked_index)
  local tag = get('delivery_tag')
  return tag and redis.call('ZSCORE', unacked_index, tag)
end

-- Counts and indexes ------------------------------------------------------------------------------

-- `counts` maps a field to what is added to it.
local function add_counts(counts)
  for field, by in pairs(counts) do redis.call('HINCRBY', keys.counts, field, by) end
  renew_ttl(keys.counts)
end

-- Counts one: the metric's name, then the values of its labels.
local function count(...) add_counts({[table.concat({...}, '|')] = 1}) end

local function add_to_index(index, score)
  redis.call('ZADD', index, score, job_id)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', time[1] - ttl_s)
  renew_ttl(index)
end

-- Where the job waits -----------------------------------------------------------------------------
-- A job that has not ended is in flight, in a tenant queue, due later, or paused.

local function put_in_flight()
  redis.call('HSET', keys.in_flight, job_id, get('tenant'))
  renew_ttl(keys.in_flight)
end

local function remove_from_flight() redis.call('HDEL', keys.in_flight, job_id) end

local function set_due_in(seconds)
  local due_at = string.format('%.6f', now + seconds)
  set({due_at = due_at})
  add_to_index(keys.due, due_at)
  remove_from_flight()
end

local function clear_due()
  redis.call('ZREM', keys.due, job_id)
  unset('due_at')
end

local function remove_from_tenant_queue(queue, tenant)
  local tenants, jobs = tenants_key(queue), tenant_queue_key(queue, tenant)
  redis.call('ZREM', jobs, job_id)
  redis.call('ZREM', since_key(queue, tenant), job_id)
  if redis.call('EXISTS', jobs) == 0 then redis.call('ZREM', tenants, tenant) end
  if redis.call('EXISTS', tenants) == 0 then redis.call('SREM', keys.tenant_queues, queue) end
end

local function leave_tenant_queue()
  local queue = get('tenant_queue')
  if not queue then return end
  remove_from_tenant_queue(queue, get('tenant'))
  unset('tenant_queue')
end

local function is_below_limit(tenant)
  local limit = redis.call('HGET', keys.fleet, 'limit:' .. tenant)
  if limit == false then limit = redis.call('HGET', keys.fleet, 'limit:*') end
  if limit == false or limit == '' then return true end
  local in_flight = 0
  for _, owner in ipairs(redis.call('HVALS', keys.in_flight)) do
    if owner == tenant then in_flight = in_flight + 1 end
  end
  return in_flight < tonumber(limit)
end

-- Sends the job to a queue, or lets it wait in its tenant's; returns 'sent' or 'waiting'.
local function send_or_wait(queue)
  local tenants, tenant = tenants_key(queue), get('tenant')
  if redis.call('EXISTS', tenants) == 0 and has_room(queue) and is_below_limit(tenant) then
    put_in_flight()
    return 'sent'
  end
  remove_from_flight()
  local jobs, since = tenant_queue_key(queue, tenant), since_key(queue, tenant)
  redis.call('ZADD', jobs, (9 - get('priority')) * 1e10 + get('created_at'), job_id)
  redis.call('ZADD', since, now, job_id)
  redis.call('ZADD', tenants, 'NX', now, tenant)
  redis.call('SADD', keys.tenant_queues, queue)
  for _, key in ipairs({jobs, since, tenants, keys.tenant_queues}) do renew_ttl(key) end
  set({tenant_queue = queue})
  return 'waiting'
end

-- The only way in which a job ends.
local function finish(status, is_dead_letter)
  set({status = status})
  clear_due()
  leave_tenant_queue()
  remove_from_flight()
  count(metrics.jobs, get('type') or 'unknown', status)
  if is_dead_letter then
    add_to_index(keys.dead_letters, now)
    count(metrics.dead_letters)
  end
  add_to_index(keys.pending_webhooks, now)
end
