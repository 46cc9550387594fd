-- Resumes a job of status `from_status` and clears what an earlier end has left. Returns 'unknown',
-- the job's status if that is another one, 'pausing' if it had not stopped yet, 'sent' or
-- 'waiting'.

-- include: job.lua

if not exists() then return 'unknown' end
local outcome = get('status')
if outcome == 'pausing' and from_status == 'paused' then
  set({status = 'running'})
elseif outcome ~= from_status then
  return outcome
else
  set({status = get('attempt') == '0' and 'queued' or 'running', starts = 0, retries = 0,
    renewed_at = 0})
  if get('stage_state') == 'running' then set({stage_state = 'queued'}) end
  unset('error', 'error_code', 'error_stage')
  redis.call('ZREM', keys.dead_letters, job_id)
  redis.call('ZREM', keys.pending_webhooks, job_id)
  redis.call('ZREM', keys.unstored_results, job_id)
  outcome = send_or_wait(queue, message)
end
append_event(event)
save()
return outcome
