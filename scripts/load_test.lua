-- For wrk, run by load_test.sh. What to send comes from the environment and files, so that no key stands in an argument.
local body_file, key = os.getenv("LOAD_BODY_FILE"), os.getenv("LOAD_KEY")
local most = tonumber(os.getenv("LOAD_REQUESTS") or "0")
local ffi = require("ffi")
ffi.cdef("int getpid(void); int kill(int pid, int signal);")
local threads = {}
answered, failed, limited = 0, 0, 0

function setup(thread)
  table.insert(threads, thread)
end

function init()
  wrk.method = os.getenv("LOAD_METHOD") or "GET"
  if body_file then
    local file = assert(io.open(body_file, "rb"))
    wrk.body = file:read("*a")
    file:close()
    wrk.headers["Content-Type"] = os.getenv("LOAD_CONTENT_TYPE")
  end
  if key then
    wrk.headers["Authorization"] = "Bearer " .. key
  end
end

function response(status)
  answered = answered + 1
  if status == 429 then
    limited = limited + 1
  elseif status < 200 or status > 299 then
    failed = failed + 1
  end
  -- An interrupt has wrk stop at once, with its summary. There is one thread, so this is the count of all.
  if answered == most then
    ffi.C.kill(ffi.C.getpid(), 2)
  end
end

function done(summary, latency)
  local failures, limits = 0, 0
  for _, thread in ipairs(threads) do
    failures = failures + thread:get("failed")
    limits = limits + thread:get("limited")
  end
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format("RESULT %d %.6f %d %d %d %.3f %.3f %.3f %.3f %.3f\n", summary.requests, summary.duration / 1e6,
    failures, limits, lost, latency.mean / 1e3, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3))
end
