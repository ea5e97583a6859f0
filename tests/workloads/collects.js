// Preloaded (`node --expose-gc -r`): collects all garbage once a second.
setInterval(() => gc(), 1000);
