;; Fills 127 MiB of memory again and again with one instruction each time: the longest stretches
;; that a guest can spend outside of code of its own.
(module
  (memory (export "memory") 2032)
  (func (export "_start")
    (loop $again
      (memory.fill (i32.const 0) (i32.const 7) (i32.const 133169152))
      (br $again))))
