#!/usr/bin/env bash
# A Slurm of one node on this machine, to try what a cluster would do. Needs root and Debian's packages slurm-wlm and
# munge. Its files lie in FOLDER, munge's in /run/munge.
#   bash scripts/slurm_local.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   bash scripts/slurm_local.sh stop FOLDER
set -euo pipefail
action=${1:?start or stop} folder=$(realpath -m "${2:?a folder}") munge=/run/munge

daemon() { # name -> its process id, where it lives
    local file="$folder/$1.pid"
    if [ -s "$file" ] && kill -0 "$(cat "$file")" 2>/dev/null; then cat "$file"; fi
}

case $action in
start)
    for program in munged slurmctld slurmd; do
        command -v "$program" >/dev/null || { echo "$program is missing: apt-get install slurm-wlm munge" >&2; exit 1; }
    done
    mkdir -p "$folder"/{state,spool} "$munge"
    # munged runs as a user of its own, who may not be let into FOLDER
    [ -s "$munge/key" ] || head -c 1024 /dev/urandom >"$munge/key"
    chown -R munge: "$munge" && chmod 755 "$munge" && chmod 400 "$munge/key"
    setpriv --reuid munge --regid munge --clear-groups munged --force --key-file "$munge/key" \
        --pid-file "$munge/munged.pid" --log-file "$munge/munged.log" --seed-file "$munge/seed"
    cp "$munge/munged.pid" "$folder/munged.pid"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
AuthType=auth/munge
NodeName=localhost CPUs=$(nproc) RealMemory=4000
PartitionName=all Nodes=localhost Default=YES
CONF
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld
    slurmd -N localhost
    for _ in $(seq 30); do
        if [ "$(sinfo -h -o %t 2>/dev/null)" = idle ]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            exit 0
        fi
        sleep 1
    done
    echo "the node did not come up within 30 s, see $folder/*.log" >&2
    exit 1
    ;;
stop)
    for name in slurmd slurmctld munged; do
        pid=$(daemon "$name")
        if [ -n "$pid" ]; then kill "$pid"; fi
    done
    ;;
*) echo "start or stop" >&2; exit 1 ;;
esac
