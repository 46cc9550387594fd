-- Ends the job. Returns 1, or 0 if the start is superseded.

-- include: job.lua

if earlier_reply(change_id) then return 1 end
if is_superseded(token) then return 0 end
set(fields)
if is_gpu_used == '1' then end_gpu_time(now) else drop_gpu_time() end
finish(status, is_dead_letter == '1')
append_events(events)
add_counts(counts)
return save_change(change_id, 1)
