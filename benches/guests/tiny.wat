;; The smallest guest there is: no memory, no imports, nothing to do. What is left is the cost of
;; having a guest at all.
(module
  (func (export "_start")))
