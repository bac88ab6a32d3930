;; One page of memory with some data, one write: the least that a guest with memory costs.
(module
  (memory (export "memory") 1)
  (data (i32.const 1024) "a counter follows: ")
  (func (export "_start")
    (i32.store (i32.const 1044)
      (i32.add (i32.load (i32.const 1044)) (i32.const 1)))
    ;; A guest that sees another's count has been given another's memory.
    (if (i32.ne (i32.load (i32.const 1044)) (i32.const 1))
      (then unreachable))))
