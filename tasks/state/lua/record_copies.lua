-- Replaces what the record of an ended job says of the copies of its results. Returns 1, or 0 if
-- the job has not ended. The record lives no longer for it.

-- include: job.lua

if not has_ended() then return 0 end
set(fields)
return 1
