;; hello_wagi.wat: an HTTP answer in plain text, by hand.
;;
;; ABI "wagi" (CGI over WASI): header lines, an empty line, then the body, all on standard output.
;; "Status:" is optional and means 200 when left out; "Content-Type:" is required. The request
;; would be in the environment (environ_sizes_get, environ_get); this guest does not look at it.
;;
;; The text format can be sent as it is; no build is needed.
;; Use:  a route with `abi: wagi` and this module.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param $fd i32) (param $iovs i32) (param $iovs_len i32) (param $written i32)
      (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))

  (memory (export "memory") 1)

  ;; Two iovecs: the head at 64 (41 bytes), the body at 128 (17 bytes). One call writes both.
  (data (i32.const 0) "\40\00\00\00\29\00\00\00\80\00\00\00\11\00\00\00")
  (data (i32.const 64) "Status: 200 OK\nContent-Type: text/plain\n\n")
  (data (i32.const 128) "Hello from wagi.\n")

  (func (export "_start")
    (local $errno i32)
    (local.set $errno
      (call $fd_write (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 16)))
    (if (local.get $errno)
      (then (call $proc_exit (local.get $errno))))))
