#!/usr/bin/env bash
# Install Spark and its Iceberg runtime for the tests marked `spark` into a folder:
#   tests/spark/install.sh DIR && HEADRACE_SPARK=DIR pytest -m spark
# Needs Java 17 or later and Maven. What is there already is left alone. PYTHON chooses the interpreter.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
target=$(cd "$1" && pwd)
wanted=$(cat "$here/pom.xml" "$here/../../requirements/spark.txt" | cksum)

if [ "$(cat "$target/installed" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
for tool in java mvn; do
    if ! command -v "$tool" >/dev/null; then
        echo "Spark cannot be installed: $tool is missing (needs Java 17 or later and Maven)" >&2
        exit 1
    fi
done
rm -rf "$target/venv" "$target/jars" "$target/installed"
"${PYTHON:-python3}" -m venv "$target/venv"
"$target/venv/bin/python" -m pip install --quiet --requirement "$here/../../requirements/spark.txt"
mvn --quiet --batch-mode --file "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$target/jars"
echo "$wanted" >"$target/installed"
