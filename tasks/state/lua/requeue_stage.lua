-- Lets a stage whose message was lost begin again. Returns 'requeued', 'held' if the message was not
-- lost after all, or 'exhausted' if such messages were set aside too often, which ends the job. A
-- stage that is done stays done: the message of its successor is what was lost.

-- include: job.lua

if get('attempt') ~= attempt then return 'held' end
if redis.call('HEXISTS', keys.in_flight, job_id) == 0 then return 'held' end
if get('stage_state') == 'running' then
  if get('stage') ~= stage or is_message_held(unacked_index) then return 'held' end
  set({stage_state = 'queued'})
  end_gpu_time(get('alive_at'))
end
if tonumber(get('unstarted') or 0) >= tonumber(max_unstarted) then
  set({error_code = 'internal', error_stage = stage, error = exhausted_message})
  finish('failed', true)
  append_event(exhausted_event)
  save()
  return 'exhausted'
end
append_event(event)
count(metrics.requeues, stage)
save()
return 'requeued'
