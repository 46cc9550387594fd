"""The Lua by which stages change a job in Redis, and what all such scripts begin with.

Each script is whole or absent. ``KEYS[1]`` is the job's hash, ``KEYS[2]`` its stream of events and
``ARGV[1]`` the life time in seconds. A job's keys are spelled in
``tasks/contract.py``, indexes of all jobs here; all have a life time. What people and sweepers do
is in ``tasks/state/control_scripts.py``.
"""

from tasks.contract import EVENT_FIELD, JOB_KEY
from tasks.metrics import DEAD_LETTERS, JOBS, TAKEOVERS

INDEX = "training:jobs"
"""Every job's id by the time it was submitted."""
OF_TENANT = "training:tenant_jobs:"
"""A tenant's follows: the same for its jobs."""
IN_FLIGHT = "training:jobs:in_flight"
"""The ids of the jobs that have a message, or whose stage runs, each with its tenant."""
LANES = "training:lanes"
"""The queues in front of which jobs wait for their tenant's turn."""
LANES_SINCE = "training:lanes_since"
"""The jobs in each lane by the time since when they wait."""
FLEET = "training:fleet"
"""What the fleet has room for, and what tenants get: ``room:QUEUE``, ``weight:TENANT``,
``limit:TENANT`` (empty for none)."""
DUE = "training:jobs:due"
"""Ids of jobs that wait out a fault, by the time of the next try."""
DEAD = "training:jobs:dead"
"""Ids of jobs that failed through no fault of their own, by the time of their end."""

UNTOLD = "training:webhooks"
"""Ids of jobs whose end is to be told by webhook, by the time of the next try."""

COUNTS = "training:counts"
"""What happened: a number for each field that ``tasks/metrics.py`` gives."""

# Some 60 bytes of overhead and 200 of JSON an event: half a megabyte a job at the most.
_MAX_EVENTS = 2000

# Whether a queue has room for a message.
ROOM = f"""
local IN_FLIGHT, LANES, FLEET = '{IN_FLIGHT}', '{LANES}', '{FLEET}'
local function has_room(queue)
  local room = redis.call('HGET', FLEET, 'room:' .. queue)
  return room and redis.call('LLEN', queue) < tonumber(room)
end
"""

# What every script of a job may call.
PRELUDE = f"""{ROOM}
local INDEX, DUE, DEAD, UNTOLD = '{INDEX}', '{DUE}', '{DEAD}', '{UNTOLD}'
local COUNTS, LANES_SINCE = '{COUNTS}', '{LANES_SINCE}'
local id = string.sub(KEYS[1], #'{JOB_KEY}' + 1)
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local function get(field) return redis.call('HGET', KEYS[1], field) end
-- As one text: the client takes long over an answer of many parts.
local function all_fields() return cjson.encode(redis.call('HGETALL', KEYS[1])) end
local function set(...) redis.call('HSET', KEYS[1], ...) end
local function tell(event)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', {_MAX_EVENTS}, '*', '{EVENT_FIELD}', event)
end
local function expire(key) redis.call('EXPIRE', key, ARGV[1]) end
-- Fields of the counts and what is added to each.
local function count_all(counts)
  for field, by in pairs(counts) do redis.call('HINCRBY', COUNTS, field, by) end
  expire(COUNTS)
end
local function count(...) count_all({{[table.concat({{...}}, '|')] = 1}}) end
local function keep()
  set('updated_at', now)
  expire(KEYS[1])
  expire(KEYS[2])
end
local function add(index, score)
  redis.call('ZADD', index, score, id)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', time[1] - ARGV[1])
  expire(index)
end
local function ended()
  local status = get('status')
  return status == 'succeeded' or status == 'failed' or status == 'cancelled'
end
local function is_due_no_more()
  redis.call('ZREM', DUE, id)
  redis.call('HDEL', KEYS[1], 'due_at')
end
-- A job that is not over is in flight, in a lane, due later, or paused.
local function put_in_flight()
  redis.call('HSET', IN_FLIGHT, id, get('tenant'))
  expire(IN_FLIGHT)
end
local function take_from_flight() redis.call('HDEL', IN_FLIGHT, id) end
local function be_due_in(seconds)
  local due_at = string.format('%.6f', now + seconds)
  set('due_at', due_at)
  add(DUE, due_at)
  take_from_flight()
end
local function leave(queue, tenant)
  local lanes = LANES .. ':' .. queue
  redis.call('ZREM', lanes .. ':' .. tenant, id)
  redis.call('ZREM', LANES_SINCE .. ':' .. queue .. ':' .. tenant, id)
  if redis.call('EXISTS', lanes .. ':' .. tenant) == 0 then redis.call('ZREM', lanes, tenant) end
  if redis.call('EXISTS', lanes) == 0 then redis.call('SREM', LANES, queue) end
end
local function leave_lane()
  local queue = get('lane')
  if not queue then return end
  leave(queue, get('tenant'))
  redis.call('HDEL', KEYS[1], 'lane')
end
local function is_below_limit(tenant)
  local limit = redis.call('HGET', FLEET, 'limit:' .. tenant)
  if limit == false then limit = redis.call('HGET', FLEET, 'limit:*') end
  if limit == false or limit == '' then return true end
  local there = 0
  for _, its in ipairs(redis.call('HVALS', IN_FLIGHT)) do
    if its == tenant then there = there + 1 end
  end
  return there < tonumber(limit)
end
-- Lets the job go to a queue, or wait in front of it for its tenant's turn; tells which.
local function queue_up(queue)
  local lanes, tenant = LANES .. ':' .. queue, get('tenant')
  if redis.call('EXISTS', lanes) == 0 and has_room(queue) and is_below_limit(tenant) then
    put_in_flight()
    return 'sent'
  end
  take_from_flight()
  local lane, since = lanes .. ':' .. tenant, LANES_SINCE .. ':' .. queue .. ':' .. tenant
  -- By priority, then by age.
  redis.call('ZADD', lane, (9 - get('priority')) * 1e10 + get('created_at'), id)
  redis.call('ZADD', since, now, id)
  redis.call('ZADD', lanes, 'NX', now, tenant)
  redis.call('SADD', LANES, queue)
  for _, key in ipairs({{lane, since, lanes, LANES}}) do expire(key) end
  set('lane', queue)
  return 'waiting'
end
-- The one way in which a job ends.
local function finish(status, dead)
  set('status', status)
  is_due_no_more()
  leave_lane()
  take_from_flight()
  count('{JOBS.name}', get('type') or 'unknown', status)
  if dead then
    add(DEAD, now)
    count('{DEAD_LETTERS.name}')
  end
  add(UNTOLD, now)
end
-- Whether the worker that runs the stage still holds its message: whoever takes the message away
-- from it takes its delivery tag from this index, and every delivery has a tag of its own.
local function is_held()
  local tag = get('held_tag')
  return tag and redis.call('ZSCORE', 'unacked_index', tag)
end
"""

# ARGV: 2 event, 3 queue of the first stage, 4... fields of the hash.
CREATE = f"""{PRELUDE}
if redis.call('EXISTS', KEYS[1]) == 1 then return 'exists' end
set('created_at', now, unpack(ARGV, 4))
tell(ARGV[2])
keep()
add(INDEX, now)
add('{OF_TENANT}' .. get('tenant'), now)
return queue_up(ARGV[3])
"""

# ARGV: 2 stage number (1 is the first), 3 stage, 4 delivery tag, 5 most starts, 6 worker,
# 7 queue, 8 event of exhaustion, 9 its message, 10 the worker's version, 11 the message's,
# 12 seconds until another message follows where the worker's is too old.
BEGIN = f"""{PRELUDE}
if redis.call('EXISTS', KEYS[1]) == 0 then return {{'unknown'}} end
if ended() then return {{'ended'}} end
local wanted = tonumber(ARGV[2])
local current = tonumber(get('stage_number'))
local state = get('stage_state')
if wanted < current then return {{'duplicate'}} end
if wanted == current and state == 'done' then return {{'done'}} end
if wanted == current and state == 'running' and is_held() then return {{'duplicate'}} end
-- A message that is ahead of its job is nobody's of ours.
local is_next = wanted == current + 1 and (current == 0 or state == 'done')
if wanted > current and not is_next then return {{'duplicate'}} end
local status = get('status')
if status == 'pausing' or status == 'paused' then
  set('status', 'paused')
  if state == 'running' then set('stage_state', 'queued') end
  leave_lane()
  take_from_flight()
  keep()
  return {{'paused'}}
end
local version = math.max(tonumber(get('version') or 1), tonumber(ARGV[11]))
if version > tonumber(ARGV[10]) then
  -- For a worker of that version, which may take the next message.
  if state == 'running' then set('stage_state', 'queued') end
  leave_lane()
  be_due_in(ARGV[12])
  local first = redis.call('HSETNX', KEYS[1], 'passed_on', ARGV[6]) == 1
  if first then
    tell(cjson.encode({{kind = 'note', level = 'info', message = string.format(
      '%s waits for a worker of version %d; %s is of version %d',
      ARGV[3], version, ARGV[6], ARGV[10])}}))
  end
  keep()
  return {{first and 'newer' or 'still_newer'}}
end
set('version', ARGV[10])
if wanted > current then set('starts', 0, 'tries', 0) end
if redis.call('HINCRBY', KEYS[1], 'starts', 1) > tonumber(ARGV[5]) then
  set('error_code', 'trainer_failed', 'error_stage', ARGV[3], 'error', ARGV[9])
  finish('failed', true)
  tell(ARGV[8])
  keep()
  return {{'exhausted'}}
end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
if wanted == current and state == 'running' then count('{TAKEOVERS.name}', ARGV[3]) end
if status == 'queued' then set('status', 'running') end
is_due_no_more()
leave_lane()
put_in_flight()
set('stage', ARGV[3], 'stage_number', wanted, 'stage_state', 'running', 'held_tag', ARGV[4],
  'stage:' .. ARGV[3], cjson.encode({{
    queue = ARGV[7], worker = ARGV[6], attempt = attempt, started_at = tonumber(now)}}))
tell(cjson.encode({{kind = 'stage_started', stage = ARGV[3], attempt = attempt,
  queue = ARGV[7], worker = ARGV[6]}}))
keep()
return {{'begun', attempt, all_fields()}}
"""

# ARGV: 2 attempt, 3 what is counted, 4 number of events, then those, then fields of the hash.
WRITE = f"""{PRELUDE}
if get('attempt') ~= ARGV[2] or ended() then return 0 end
local first_field = 5 + ARGV[4]
if ARGV[first_field] then set(unpack(ARGV, first_field)) end
for i = 5, first_field - 1 do tell(ARGV[i]) end
count_all(cjson.decode(ARGV[3]))
keep()
return 1
"""

# ARGV: 2 attempt, 3 what is counted, 4 event, 5 the next stage's queue where the job needs a turn
# for it ('' where it goes on), 6... fields of the hash.
FINISH_STAGE = f"""{PRELUDE}
if get('attempt') ~= ARGV[2] or ended() then return 'superseded' end
set('stage_state', 'done', unpack(ARGV, 6))
tell(ARGV[4])
local goes = ARGV[5] == '' and 'sent' or queue_up(ARGV[5])
count_all(cjson.decode(ARGV[3]))
keep()
return goes
"""

# ARGV: 2 attempt, 3 what is counted, 4 status, 5 whether it is dead (0/1), 6 number of events, then
# those, then fields of the hash.
END = f"""{PRELUDE}
if get('attempt') ~= ARGV[2] or ended() then return 0 end
local first_field = 7 + ARGV[6]
set(unpack(ARGV, first_field))
finish(ARGV[4], ARGV[5] == '1')
for i = 7, first_field - 1 do tell(ARGV[i]) end
count_all(cjson.decode(ARGV[3]))
keep()
return 1
"""

# ARGV: 2 attempt, 3 what is counted, 4 event, 5 seconds until it may begin again ('' at once),
# 6... fields.
RELEASE = f"""{PRELUDE}
if get('attempt') ~= ARGV[2] or ended() then return 'superseded' end
local status = get('status')
if status == 'cancelling' then return status end
set('stage_state', 'queued', 'starts', 0)
if ARGV[6] then set(unpack(ARGV, 6)) end
tell(ARGV[4])
count_all(cjson.decode(ARGV[3]))
if status == 'pausing' then
  status = 'paused'
  set('status', status)
  take_from_flight()
elseif ARGV[5] ~= '' then
  be_due_in(ARGV[5])
end
keep()
return status
"""

# ARGV: 2 attempt. Whether this start should go on, as one question.
WISH = f"""{PRELUDE}
if get('attempt') ~= ARGV[2] or ended() then return 'superseded' end
return get('status')
"""
