#!/usr/bin/env bash
# Start a private SLURM of fake nodes on this machine, as root or as any user; /etc is neither read nor written.
#   LAB=DIR [NAME=value …] up.sh        then  eval "$(cat DIR/env)"  to talk to it
#   LAB           directory of everything: configuration, state, logs, pids; at most 60 bytes long, for its sockets
#   NODES CPUS GPUS   fake nodes [4], CPUs [8] and GPUs [4] of each
#   BASE          first TCP port: controller BASE, slurmdbd BASE+1, mariadbd BASE+2, node i BASE+10+i [26800]
#   DBD           1: with accounting, so that sacct works [0]
#   OWNER         pid of a process; when it is gone, down.sh is run and LAB removed
#   MAXARRAY      MaxArraySize; the largest array index is one less [1001]
#   SLURMDTIMEOUT seconds until a silent node is down [300]
#   FIRSTJOB      first job id; different at each start, so that ids of two labs are not mixed up
#   NODEPREFIX    "127.0.1." names the nodes by loopback addresses, which resolve everywhere [n]
#   EXTRA         further lines of slurm.conf
set -Eeuo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/env.sh"
: "${LAB:?set LAB to a private directory}"
NODES=${NODES:-4} CPUS=${CPUS:-8} GPUS=${GPUS:-4} BASE=${BASE:-26800} DBD=${DBD:-0} OWNER=${OWNER:-}
MAXARRAY=${MAXARRAY:-1001} SLURMDTIMEOUT=${SLURMDTIMEOUT:-300} EXTRA=${EXTRA:-} NODEPREFIX=${NODEPREFIX:-n}
FIRSTJOB=${FIRSTJOB:-$(($(date +%s) % 1000000 + 1000))}
ME=$(id -un) HOST=$(uname -n)
HOST=${HOST%%.*}
export LAB SLURM_CONF=$LAB/etc/slurm.conf
NAMES=$NODEPREFIX[1-$NODES]
PLUGINS=${SLURM_PLUGINS:+PluginDir=$SLURM_PLUGINS}

die() {
  echo "up.sh: $1" >&2
  exit 1
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Call "$@" every 50 ms until it succeeds; fail after 10 s.
await() {
  local _
  for _ in $(seq 200); do "$@" && return; sleep 0.05; done
  return 1
}

start_munge() { # with a key and a socket of its own; --force accepts any owner of the directories above
  [ -s "$LAB/etc/munge.key" ] || head -c 1024 /dev/urandom >"$LAB/etc/munge.key"
  chmod 600 "$LAB/etc/munge.key"
  munged --force --num-threads=4 --socket="$LAB/run/munge.socket" --key-file="$LAB/etc/munge.key" \
    --pid-file="$LAB/run/munged.pid" --log-file="$LAB/log/munged.log" --seed-file="$LAB/run/munged.seed" \
    2>>"$LAB/log/munged.err"
}

sql() { mariadb --no-defaults --socket="$LAB/run/mysql.sock" -u root -e "$1"; }
sql_answers() { sql 'select 1' >/dev/null 2>&1; }

start_database() {
  local base=()
  [ -z "$SLURM_PLUGINS" ] || base=(--basedir="$SLURM_ROOT/usr")
  [ -d "$LAB/mysql/mysql" ] || mariadb-install-db --no-defaults "${base[@]}" --user="$ME" --datadir="$LAB/mysql" \
    --auth-root-authentication-method=normal --skip-test-db --skip-name-resolve >"$LAB/log/mariadb-install.log" 2>&1
  mariadbd --no-defaults "${base[@]}" --user="$ME" --datadir="$LAB/mysql" --socket="$LAB/run/mysql.sock" \
    --pid-file="$LAB/run/mariadbd.pid" --bind-address=127.0.0.1 --port=$((BASE + 2)) \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
    --sync-binlog=0 --innodb-doublewrite=0 >"$LAB/log/mariadbd.log" 2>&1 </dev/null &
  echo $! >"$LAB/run/mariadbd.pid"
  await sql_answers
  sql "create database if not exists slurm_acct_db;
       create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm';
       grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1'"
}

start_accounting() {
  start_database
  cat >"$LAB/etc/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$LAB/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((BASE + 1))
SlurmUser=$ME
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((BASE + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CommitDelay=0
LogFile=$LAB/log/slurmdbd.log
PidFile=$LAB/run/slurmdbd.pid
$PLUGINS
END
  chmod 600 "$LAB/etc/slurmdbd.conf"
  slurmdbd
  await listens $((BASE + 1))
  [ -n "$(sacctmgr -nP list cluster lab)" ] || sacctmgr -i add cluster lab >"$LAB/log/sacctmgr.log" 2>&1
}

accounting_lines() {
  [ "$DBD" = 1 ] || { echo AccountingStorageType=accounting_storage/none; return; }
  cat <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((BASE + 1))
AccountingStoragePass=$LAB/run/munge.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
END
}

# Symbolic links to /dev/null pass for GPUs; regular files and a mere count get no CUDA_VISIBLE_DEVICES.
# config_overrides: the nodes claim more CPUs than the machine has.
# cred_expire=5: a requeued job starts again after 6 s; by default after 121 s.
write_configuration() {
  local address=127.0.0.1 gpu
  case $NODEPREFIX in 127.*) address=$NAMES ;; esac
  cat >"$LAB/etc/slurm.conf" <<END
ClusterName=lab
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$BASE
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
AuthInfo=socket=$LAB/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmdPidFile=$LAB/run/slurmd.%n.pid
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PropagateResourceLimits=NONE
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
SlurmdTimeout=$SLURMDTIMEOUT
KillWait=2
MaxArraySize=$MAXARRAY
MaxJobCount=20000
MinJobAge=300
EnforcePartLimits=ALL
FirstJobId=$FIRSTJOB
$(accounting_lines)
$PLUGINS
$EXTRA
NodeName=$NAMES NodeHostname=$HOST NodeAddr=$address Port=[$((BASE + 11))-$((BASE + 10 + NODES))] CPUs=$CPUS RealMemory=16000 Gres=gpu:$GPUS State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
END
  # Nothing uses cgroups; naming a version spares slurmd the search, which fails where /sys/fs/cgroup is not mounted.
  echo CgroupPlugin=cgroup/v1 >"$LAB/etc/cgroup.conf"
  for gpu in $(seq 0 $((GPUS - 1))); do ln -sfn /dev/null "$LAB/dev/gpu$gpu"; done
  echo "NodeName=$NAMES Name=gpu File=$LAB/dev/gpu[0-$((GPUS - 1))]" >"$LAB/etc/gres.conf"
}

write_environment() { # for the shells that talk to this cluster
  {
    echo "export SLURM_CONF='$SLURM_CONF'"
    echo "export PATH='$PATH'"
    [ -z "${LD_LIBRARY_PATH:-}" ] || echo "export LD_LIBRARY_PATH='$LD_LIBRARY_PATH'"
  } >"$LAB/env"
}

# The subshell takes its pid file away before it runs down.sh, which would otherwise end it.
watch_owner() {
  OWNER=$OWNER setsid bash -c 'echo $$ >"$LAB/run/watch.pid"; tail --pid="$OWNER" -f /dev/null
    rm -f "$LAB/run/watch.pid"; bash "$0"; rm -rf "$LAB"' "$HERE/down.sh" >/dev/null 2>&1 </dev/null &
  await test -s "$LAB/run/watch.pid"
}

all_idle() { [ "$(timeout 5 sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "$NODES" ]; }

start_nodes() {
  local i name
  for i in $(seq "$NODES"); do
    name=$NODEPREFIX$i
    mkdir -p "$LAB/spool/$name"
    slurmd -d "$(command -v slurmstepd)" -N "$name"
  done
  await all_idle || die "nodes are not idle after 10 s; see $LAB/log"
  # a slurmd registers before it binds its port, so an idle node may have none
  for i in $(seq "$NODES"); do await listens $((BASE + 10 + i)) || die "slurmd $i is dead; see $LAB/log"; done
}

[ "${#LAB}" -le 60 ] || die "LAB = $LAB; must be at most 60 bytes long"
for port in "$BASE" $((BASE + 1)) $((BASE + 2)) $(seq $((BASE + 11)) $((BASE + 10 + NODES))); do
  ! listens "$port" || die "port $port is in use; is this lab up already?"
done
mkdir -p "$LAB"/{etc,state,spool,log,run,dev,mysql}
chmod 755 "$LAB" "$LAB"/*
trap 'echo "up.sh: failed at line $LINENO: $BASH_COMMAND; see $LAB/log" >&2' ERR
trap '[ $? = 0 ] || bash "$HERE/down.sh"' EXIT
trap 'exit 130' INT TERM
[ -z "$OWNER" ] || watch_owner
start_munge
write_configuration
[ "$DBD" != 1 ] || start_accounting
slurmctld
start_nodes
write_environment
