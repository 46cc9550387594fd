"""The Lua by which people and sweepers change jobs in Redis, and let those that wait go.

As in ``tasks/state/job_scripts.py``: ``KEYS[1]`` is the job's hash, ``KEYS[2]`` its stream of events and
``ARGV[1]`` the life time in seconds, unless a script says otherwise.
"""

from tasks.contract import EVENTS_SUFFIX, JOB_KEY
from tasks.metrics import REQUEUES
from tasks.state.job_scripts import PRELUDE, ROOM

# ARGV: 2 event of the end, 3 its message, 4 whether to save (0/1). Between two stages there is
# nothing to stop: the next message finds the job ended. A job that waits is saved by publishing
# the checkpoints it has.
CANCEL = f"""{PRELUDE}
if redis.call('EXISTS', KEYS[1]) == 0 then return 'unknown' end
if ended() then return get('status') end
local running = get('stage_state') == 'running'
local saves = ARGV[4] == '1' and redis.call('HEXISTS', KEYS[1], 'ref:checkpoints') == 1
if running or saves then set('status', 'cancelling', 'saves', ARGV[4]) end
if not running and saves and tonumber(get('stage_number')) < 4 then
  set('stage', 'train', 'stage_number', 3, 'stage_state', 'done')
  is_due_no_more()
  leave_lane()
  put_in_flight()
elseif not running and not saves then
  set('error_code', 'cancelled', 'error_stage', get('stage'), 'error', ARGV[3])
  finish('cancelled')
  tell(ARGV[2])
end
keep()
return get('status')
"""

# ARGV: 2 event.
PAUSE = f"""{PRELUDE}
if redis.call('EXISTS', KEYS[1]) == 0 then return 'unknown' end
local status = get('status')
if status ~= 'queued' and status ~= 'running' then return status end
status = get('stage_state') == 'running' and 'pausing' or 'paused'
set('status', status)
is_due_no_more()
leave_lane()
if status == 'paused' then take_from_flight() end
tell(ARGV[2])
keep()
return status
"""

# ARGV: 2 status to be resumed from, 3 event, 4 queue of the stage it waits for. What an earlier end
# has left is forgotten.
RESUME = f"""{PRELUDE}
if redis.call('EXISTS', KEYS[1]) == 0 then return 'unknown' end
local status = get('status')
if status == 'pausing' and ARGV[2] == 'paused' then
  set('status', 'running')
elseif status ~= ARGV[2] then
  return status
else
  set('status', get('attempt') == '0' and 'queued' or 'running', 'starts', 0, 'tries', 0)
  if get('stage_state') == 'running' then set('stage_state', 'queued') end
  redis.call('HDEL', KEYS[1], 'error', 'error_code', 'error_stage')
  redis.call('ZREM', DEAD, id)
  redis.call('ZREM', UNTOLD, id)
  status = queue_up(ARGV[4])
end
tell(ARGV[3])
keep()
return status
"""

# ARGV: 2 attempt, 3 stage, 4 event. A stage that is done stays so: its successor is what is lost.
REQUEUE = f"""{PRELUDE}
if get('attempt') ~= ARGV[2] or redis.call('HEXISTS', IN_FLIGHT, id) == 0 then return 0 end
if get('stage_state') == 'running' then
  if get('stage') ~= ARGV[3] or is_held() then return 0 end
  set('stage_state', 'queued')
end
tell(ARGV[4])
count('{REQUEUES.name}', ARGV[3])
keep()
return 1
"""

# Whether the job's next try is due now, and for this caller to send.
TAKE_DUE = f"""{PRELUDE}
if redis.call('ZSCORE', DUE, id) == false then return 0 end
is_due_no_more()
if redis.call('EXISTS', KEYS[1]) == 0 or ended() then return 0 end
put_in_flight()
keep()
return 1
"""

# No KEYS, no ARGV. All it takes to say whose turn it is, and nothing where no queue that jobs wait
# for has room: it is asked at each start of a stage. The queues with their tenants, the longest
# without a turn first; the tenants of all jobs in flight; the fleet.
TURNS = f"""{ROOM}
local queues = {{}}
for _, queue in ipairs(redis.call('SMEMBERS', LANES)) do
  if has_room(queue) then
    table.insert(queues, {{queue, redis.call('ZRANGE', LANES .. ':' .. queue, 0, -1)}})
  end
end
if #queues == 0 then return {{}} end
return {{queues, redis.call('HVALS', IN_FLIGHT), redis.call('HGETALL', FLEET)}}
"""

# KEYS: 1 the lane; the job is the first in it. ARGV: 2 queue, 3 tenant. Whether the job leaves its
# lane now, for this caller to send, its id and its fields.
TAKE_TURN = f"""
local first = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
if not first then return {{'waiting'}} end -- somebody else took it just now
KEYS[1] = '{JOB_KEY}' .. first
KEYS[2] = KEYS[1] .. '{EVENTS_SUFFIX}'
{PRELUDE}
if get('lane') ~= ARGV[2] then
  leave(ARGV[2], ARGV[3]) -- its life time is over
  return {{'gone'}}
end
if not has_room(ARGV[2]) or not is_below_limit(ARGV[3]) then return {{'waiting'}} end
leave_lane()
redis.call('ZADD', LANES .. ':' .. ARGV[2], 'XX', now, ARGV[3])
put_in_flight()
keep()
return {{'sent', id, all_fields()}}
"""
