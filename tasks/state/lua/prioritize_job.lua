-- Changes a job's priority, or moves it to the front of its tenant's jobs. Returns 'unknown', the status
-- of an ended job, 'sent' if it waits in no tenant queue any more, 'waiting' if it waits in one, or
-- 'later' if it will: it is paused, due later, or has not been dispatched to its GPU yet.

-- include: job.lua

if not exists() then return 'unknown' end
local queue, status = get('tenant_queue'), get('status')
-- The stages before the job waits for its GPU.
local cpu_stages = get('artifact:cache_queue') == '"cpu"' and 2 or 1
local stage_number = tonumber(get('stage_number'))
local waits_again = status == 'paused' or status == 'pausing' or get('due_at')
  or stage_number < cpu_stages
  or stage_number == cpu_stages and get('stage_state') ~= 'done'
if has_ended() then return status end
if not queue and not waits_again then return 'sent' end
if is_to_front == '1' then
  set({front_at = now})
else
  set({priority = priority})
  unset('front_at')
end
if queue then
  redis.call('ZADD', tenant_queue_key(queue, get('tenant')), 'XX', order_in_tenant_queue(), job_id)
end
append_event(event)
save()
return queue and 'waiting' or 'later'
