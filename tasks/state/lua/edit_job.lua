-- Changes what people call a job. Returns 1, or 0 if there is no such job. Its record lives no
-- longer for it.

-- include: job.lua

if not exists() then return 0 end
set(fields)
return 1
