-- Lets a stage whose message was lost begin again. Returns 1, or 0 if it was not lost after all. A
-- stage that is done stays done: the message of its successor is what was lost.

-- include: job.lua

if get('attempt') ~= attempt then return 0 end
if redis.call('HEXISTS', keys.in_flight, job_id) == 0 then return 0 end
if get('stage_state') == 'running' then
  if get('stage') ~= stage or is_message_held(unacked_index) then return 0 end
  set({stage_state = 'queued'})
end
append_event(event)
count(metrics.requeues, stage)
save()
return 1
