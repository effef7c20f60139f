#!/usr/bin/env bash
# A real SLURM of its own on one machine, for tests: munged, slurmctld and two slurmd (nodes n1, n2).
#
#   cluster.sh install       the packages, from Debian or Ubuntu (root)
#   cluster.sh start DIR     settings and state into DIR, daemons up, nodes idle (root; half a second)
#   cluster.sh status DIR
#   cluster.sh stop DIR      ends exactly the daemons that `start` started, removes what it wrote outside of DIR
#
#   ACCOUNTING=1             with install and start: MariaDB and slurmdbd too, so that `sacct` works
#   CPUS=4                   processors that each node claims; may be more than the machine has
#
# After the start:  export SLURM_CONF=DIR/slurm.conf
#
# It meets no other SLURM of this machine: own ports, own munge socket and key, nothing in /etc/slurm. Outside of DIR
# it writes two lines to /etc/hosts (torch looks the first node up by name), which `stop` takes out again.
#
# Partitions, best first: urgent (preempts both), main (preempted jobs are requeued) and spot (cancelled after 15 s).
set -euo pipefail

CPUS=${CPUS:-4}
ACCOUNTING=${ACCOUNTING:-0}

say() { printf 'cluster.sh: %s\n' "$*"; }
die() {
    say "$*" >&2
    exit 1
}

wait_until() { # wait_until SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

install_packages() {
    local packages=(slurmctld slurmd slurm-client munge)
    if [ "$ACCOUNTING" = 1 ]; then packages+=(slurmdbd mariadb-server); fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}"
}

free_ports() { # free_ports COUNT: that many ports nobody listens on
    python3 - "$1" <<'PY'
import socket
import sys

taken = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in taken:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in taken))
PY
}

write_settings() {
    local controller first second daemon machine
    read -r controller first second daemon <<<"$(free_ports 4)"
    machine=$(hostname -s)
    echo "$daemon" >"$DIR/slurmdbd.port"
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=mmadapter_test
SlurmctldHost=$machine(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a requeued job waits that long; 120 s by default
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/pids/slurmctld
SlurmdPidFile=$DIR/pids/slurmd.%n
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=15
MinJobAge=600
InactiveLimit=0
UnkillableStepTimeout=30
$(accounting_settings "$daemon")
NodeName=n1 NodeHostname=$machine NodeAddr=127.0.0.1 Port=$first CPUs=$CPUS RealMemory=8192 State=UNKNOWN
NodeName=n2 NodeHostname=$machine NodeAddr=127.0.0.1 Port=$second CPUs=$CPUS RealMemory=8192 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=spot Nodes=n[1-2] PriorityTier=1 PreemptMode=CANCEL GraceTime=15
PartitionName=urgent Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
CONF
    for node in n1 n2; do
        echo "127.0.0.1 $node $HOSTS_MARK" >>/etc/hosts
    done
}

accounting_settings() { # accounting_settings PORT
    if [ "$ACCOUNTING" = 1 ]; then
        echo "AccountingStorageType=accounting_storage/slurmdbd"
        echo "AccountingStorageHost=localhost"
        echo "AccountingStoragePort=$1"
        echo "AccountingStoragePass=$DIR/munge.socket"
        echo "JobAcctGatherType=jobacct_gather/linux"
    else
        echo "AccountingStorageType=accounting_storage/none"
        echo "JobAcctGatherType=jobacct_gather/none"
    fi
}

start_munge() {
    mungekey --create --force --keyfile "$DIR/munge.key"
    # --force: it wants every folder above its files to belong to root or itself and to be closed to others
    munged --force --key-file "$DIR/munge.key" --socket "$DIR/munge.socket" --pid-file "$DIR/pids/munged" \
        --log-file "$DIR/log/munged.log" --seed-file "$DIR/munge.seed" 2>>"$DIR/log/munged.log"
    wait_until 10 munge --socket "$DIR/munge.socket" --no-input || die "munged does not answer, see $DIR/log/munged.log"
}

start_accounting() {
    local base=$DIR/mysql port
    mkdir -p "$base"
    chown mysql:mysql "$base"
    mariadb-install-db --user=mysql --datadir="$base/data" --skip-test-db >"$DIR/log/mysql_install.log" 2>&1
    mariadbd --no-defaults --user=mysql --datadir="$base/data" --socket="$base/socket" --skip-networking \
        --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --pid-file="$base/pid" >"$DIR/log/mariadb.log" 2>&1 &
    echo $! >"$DIR/pids/mariadbd"
    wait_until 30 mariadb-admin --no-defaults -S "$base/socket" ping || die "MariaDB does not answer, see $DIR/log"
    mariadb --no-defaults -S "$base/socket" -e "CREATE DATABASE slurm_acct_db;
        CREATE USER 'slurm'@'localhost' IDENTIFIED BY 'sandbox'; GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';"
    port=$(cat "$DIR/slurmdbd.port")
    cat >"$DIR/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$DIR/munge.socket
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=$port
SlurmUser=root
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/pids/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=sandbox
StorageLoc=slurm_acct_db
CONF
    chmod 600 "$DIR/slurmdbd.conf"
    MYSQL_UNIX_PORT=$base/socket slurmdbd
    wait_until 60 sacctmgr -n list cluster || die "slurmdbd does not answer, see $DIR/log/slurmdbd.log"
    sacctmgr -i add cluster mmadapter_test >/dev/null 2>&1 || true
}

start() {
    [ "$(id -u)" = 0 ] || die "start needs root"
    [ ! -e "$DIR/pids" ] || die "$DIR is in use: cluster.sh stop $DIR"
    mkdir -p "$DIR"/{state,log,spool/n1,spool/n2,pids}
    chmod 755 "$DIR"
    write_settings
    start_munge
    if [ "$ACCOUNTING" = 1 ]; then start_accounting; fi
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N n1
    slurmd -f "$SLURM_CONF" -N n2
    wait_until 60 nodes_idle || die "the nodes are not idle, see $DIR/log"
    say "up; export SLURM_CONF=$SLURM_CONF"
}

nodes_idle() { [ "$(sinfo -h -N -p main -t idle -o %N | wc -l)" = 2 ]; }

stop() {
    [ -d "$DIR/pids" ] || die "no cluster was started in $DIR"
    timeout 20 scancel --user root || true
    wait_until 25 no_jobs || true
    local name file pid
    for name in slurmd.n1 slurmd.n2 slurmctld slurmdbd mariadbd munged; do
        file=$DIR/pids/$name
        [ -s "$file" ] || continue
        pid=$(cat "$file")
        # a number may have passed on to another process: only ours is ended
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "${name%%.*}" ]; then
            kill "$pid"
            wait_until 10 test ! -e "/proc/$pid" || kill -9 "$pid"
        fi
    done
    rm -rf "$DIR"/{pids,state,spool,mysql,munge.key,munge.seed} # the numbers of jobs start again: so must the accounting
    # /etc/hosts may be mounted on its own: written over, not replaced
    local kept
    kept=$(grep -vF "$HOSTS_MARK" /etc/hosts)
    printf '%s\n' "$kept" >/etc/hosts
    say "stopped"
}

no_jobs() { [ -z "$(timeout 5 squeue -h -o %i)" ]; }

status() {
    sinfo -N -l
    squeue
}

[ "${1:-}" = install ] || [ $# = 2 ] || die "usage: cluster.sh install | start DIR | status DIR | stop DIR"
DIR=$(realpath -m "${2:-.}")
HOSTS_MARK="# test cluster $DIR" # one's own lines, should two clusters run
export SLURM_CONF=$DIR/slurm.conf
case "$1" in
install) install_packages ;;
start | status | stop) "$1" ;;
*) die "usage: cluster.sh install | start DIR | status DIR | stop DIR" ;;
esac
