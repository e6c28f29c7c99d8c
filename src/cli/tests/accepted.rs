//! Tests of command lines of the docker client that weft accepts, for each group of commands.

use super::parse_line;

#[track_caller]
fn check(lines: &[&str]) {
    for line in lines {
        if let Err(error) = parse_line(line) {
            panic!("weft {line}: {error}");
        }
    }
}

#[test]
fn accepts_the_commands_of_swarm() {
    check(&[
        "swarm init --advertise-addr 192.0.2.1",
        "swarm init --advertise-addr 192.0.2.1 --listen-addr 192.0.2.1:2377",
        "swarm init --data-path-addr 198.51.100.1 --data-path-port 7789",
        "swarm join --data-path-addr eth1 --token T 192.0.2.1:2377",
        "swarm join-token worker",
        "swarm join-token manager --quiet",
        "swarm join-token --rotate worker",
        "swarm join --token T 192.0.2.1:2377",
        "swarm leave",
        "swarm leave --force",
        "swarm ca",
        "swarm ca --rotate",
        "swarm ca --rotate --ca-cert cert.pem --ca-key key.pem --cert-expiry 720h",
        "swarm ca --quiet",
        "swarm ca --rotate --detach --quiet",
        "swarm update --key-rotation 24h",
        "swarm init --default-addr-pool 10.20.0.0/16 --default-addr-pool 10.30.0.0/16",
        "swarm init --default-addr-pool 10.20.0.0/16,10.30.0.0/16 --default-addr-pool-mask-length 26",
        "swarm update --default-addr-pool 10.20.0.0/16 --default-addr-pool-mask-length 25",
        "swarm init --autolock",
        "swarm update --autolock",
        "swarm update --autolock=false",
        "swarm unlock",
        "swarm unlock-key",
        "swarm unlock-key --rotate -q",
        "swarm update --cert-expiry 720h --task-history-limit 3 --dispatcher-heartbeat 5s",
    ]);
}

#[test]
fn accepts_the_commands_of_node() {
    check(&[
        "node ls",
        "node inspect self",
        "node inspect --pretty n1 n2",
        "node ps",
        "node ps n1 --no-trunc",
        "node update --availability drain n1",
        "node update --availability=active --label-add storage=ssd --label-rm zone --role manager n1",
        "node promote n1 n2",
        "node demote n1",
        "node rm --force n1",
    ]);
}

#[test]
fn accepts_service_create() {
    check(&[
        "service create --name vote -p 8080:80 weft/whoami",
        "service create --replicas 3 weft/whoami command --flag of the command",
        "service create --mode global weft/whoami",
        "service create --env A=1 -e B --env-file vars --label a=b --container-label c=d weft/whoami",
        "service create --constraint node.labels.storage==ssd --placement-pref spread=node.labels.zone weft/whoami",
        "service create --limit-cpu 0.5 --limit-memory 64m --limit-pids 10 --reserve-cpu 1 --reserve-memory 1g weft/whoami",
        "service create --restart-condition on-failure --restart-delay 5s --restart-max-attempts 3 --restart-window 2m x",
        "service create --update-parallelism 2 --update-delay 5s --update-monitor 5s --update-order start-first x",
        "service create --update-max-failure-ratio 0.1 --update-failure-action rollback x",
        "service create --rollback-parallelism 2 --rollback-delay 5s --rollback-monitor 5s --rollback-order stop-first x",
        "service create --rollback-max-failure-ratio 0.1 --rollback-failure-action continue x",
        "service create --stop-grace-period 10s --stop-signal SIGINT --user 1:1 --workdir / --read-only --init x",
        "service create --network a --network name=b,alias=c --endpoint-mode dnsrr --hostname h --entrypoint sh x",
        "service create --dns 192.0.2.53 --dns-search corp.test --dns-option ndots:1 --host db:192.0.2.7 x",
        // The command line accepts the mode `host`, but the daemon refuses it.
        "service create --publish published=8080,target=80,protocol=udp,mode=host x",
        "service create -p 80 x",
        "service create --with-registry-auth --no-resolve-image=false registry.test/x",
        "service create -p 53:53/sctp x",
    ]);
}

#[test]
fn accepts_the_other_commands_of_service() {
    check(&[
        "service ls",
        "service ls --filter name=vote --format {{.Name}} --quiet",
        "service ps vote --no-trunc --no-resolve -f desired-state=running",
        "service inspect vote",
        "service inspect --pretty vote",
        "service logs -f vote",
        "service logs --since 42m --until 10m vote",
        "service logs --tail 10 --since 2026-01-01T00:00:00Z --timestamps --raw vote",
        "service scale vote=8 redis=3",
        "service update --image x:2 --update-parallelism 2 --update-delay 5s vote",
        "service update --force vote",
        "service update --with-registry-auth --no-resolve-image --image registry.test/x:2 vote",
        "service update --rollback --detach vote",
        "service update --args -v --network-add a --network-rm b --publish-add 8081:80 --publish-rm 80 vote",
        "service update --dns-add 192.0.2.53 --dns-rm 2001:db8::53 --dns-search-add a.test --dns-search-rm . vote",
        "service update --dns-option-add rotate --dns-option-rm ndots:1 --host-add db:192.0.2.7 --host-rm web vote",
        "service rollback vote",
        "service rm vote redis",
    ]);
}

#[test]
fn accepts_the_commands_of_network() {
    check(&[
        "network create --driver overlay --subnet 10.1.0.0/24 --gateway 10.1.0.1 --ip-range 10.1.0.128/25 app",
        "network create --scope swarm --ipam-driver default --ipam-opt com.docker.network.ipam.serial=true app",
        "network create --subnet 10.1.0.0/24 --aux-address router=10.1.0.5 --aux-address printer=10.1.0.6 app",
        "network create --opt com.docker.network.driver.mtu=1400 -o com.docker.network.driver.overlay.vxlanid_list=5000 x",
        "network create --subnet 10.1.0.0/24 --subnet 10.2.0.0/24 --gateway 10.2.0.9 app",
        "network create --ipv4=false --ipv6 --subnet fd00:1::/64 app",
        "network create --config-only --subnet 10.1.0.0/24 options",
        "network create --config-from options app",
        "network create --driver overlay --opt encrypted --internal --ipv6 --label a=b app",
        "network create --ingress --opt encrypted --driver overlay --subnet 10.11.0.0/16 --gateway 10.11.0.2 my-ingress",
        "network create --subnet 10.1.0.0/24,2001:db8::/64 --ipv6 app",
        "network ls",
        "network inspect app",
        "network inspect --verbose app",
        "network rm app",
        "network rm --force app",
    ]);
}

#[test]
fn accepts_the_commands_of_secret_and_config() {
    check(&[
        "secret create key -",
        "secret create --label a=b -l c --template-driver golang key key.txt",
        "secret ls --filter name=key --format {{.Name}} --quiet",
        "secret list",
        "secret inspect --pretty key other",
        "secret rm key other",
        "config create --label a=b conf conf.txt",
        "config ls",
        "config inspect conf",
        "config remove conf",
        "service create --secret key --secret source=key,target=/etc/key,uid=1000,gid=7,mode=0400 x",
        "service create --config conf --config source=conf,target=/etc/conf x",
        "service update --secret-add source=new,target=key --secret-rm old --config-add a --config-rm b vote",
    ]);
}

#[test]
fn accepts_the_commands_without_a_group() {
    check(&["-H tcp://192.0.2.1:3375 info", "info --format json", "version", "daemon --socket /run/weft/other.sock"]);
}
