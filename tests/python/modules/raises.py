raise RuntimeError("the library is not there")
