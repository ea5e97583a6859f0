#!/bin/bash
# Compresses a large page as well as it can, anew for every request. gzip.sh DIR
. "$(dirname "$0")/server.sh"
python3 -c 'import random; random.seed(1); print(" ".join(str(random.randrange(5000)) for _ in range(400000)))' > "$dir/index.html"
start "gzip on; gzip_comp_level 9; gzip_types *;" ""
echo "ready port=$port pid=$worker"
wait
