#!/bin/bash
# A real Slurm of several nodes on one machine, for tests: as root, without systemd, cgroups or a database.
# usage: start.sh DIR NODES; then SLURM_CONF=DIR/etc/slurm.conf. Every port is drawn; it fails where one is taken.
set -euo pipefail
D=$(realpath -m "$1"); N=$2; H=$(hostname -s); P=$((20000 + RANDOM % 20000))
mkdir -p "$D"/{state,spool,log,run,etc}
cat > "$D/etc/slurm.conf" <<CONF
ClusterName=unitscope
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$P
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# With the default a lost node's jobs are held until their credential expires: two minutes.
AuthInfo=socket=$D/run/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=6
InactiveLimit=0
KillWait=3
MessageTimeout=10
MinJobAge=300
JobRequeue=1
SchedulerParameters=requeue_delay=1,sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=2
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
GresTypes=gpu
CONF
for i in $(seq 1 "$N"); do
  echo "NodeName=n$i NodeHostname=$H NodeAddr=127.0.0.1 Port=$((P + i)) CPUs=1 RealMemory=2000 Gres=gpu:1 State=UNKNOWN" >> "$D/etc/slurm.conf"
done
echo "PartitionName=main Nodes=n[1-$N] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO" >> "$D/etc/slurm.conf"
[ -e "$D/gpu" ] || mknod "$D/gpu" c 1 3
echo "NodeName=n[1-$N] Name=gpu File=$D/gpu" > "$D/etc/gres.conf"
export SLURM_CONF=$D/etc/slurm.conf
head -c 1024 /dev/urandom > "$D/etc/munge.key"; chmod 400 "$D/etc/munge.key"
munged --force --key-file="$D/etc/munge.key" --socket="$D/run/munge.socket" --pid-file="$D/run/munged.pid" \
  --log-file="$D/log/munged.log" --seed-file="$D/run/munged.seed"
slurmctld -i
for i in $(seq 1 "$N"); do mkdir -p "$D/spool/n$i"; slurmd -N "n$i"; done
for _ in $(seq 100); do
  [ "$(sinfo -h -N -t idle -o %n 2>/dev/null | wc -l)" = "$N" ] && exit 0
  sleep 0.2
done
echo "the nodes did not come up: see $D/log" >&2
exit 1
