//! Cgroups by what people call them: the name of a systemd unit, or the id of a container.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::Error;

/// Directories looked at, at most.
const MAX_LOOKED_AT: usize = 50_000;
/// Containers are called by the beginning of their id, of so many digits at least.
const ID_DIGITS: usize = 8;
/// How many of them tell one container from another to a reader, as docker shows them.
const SHORT_ID: usize = 12;
/// What every cgroup's directory has.
const MEMBERS: &str = "cgroup.procs";
/// What systemd appends to names.
const UNITS: [&str; 3] = [".service", ".scope", ".slice"];

/// The directory of what was asked for: itself if it is a path, else the one cgroup of that name below `mounts`, where cgroups are
/// mounted.
pub fn find(asked: &Path, mounts: &[PathBuf]) -> Result<PathBuf, Error> {
    let name = asked.to_str().filter(|name| !name.is_empty() && !name.contains('/'));
    let Some(name) = name.filter(|_| !asked.join(MEMBERS).exists()) else {
        return Ok(asked.to_owned());
    };
    let mut left = mounts.to_vec();
    let (mut found, mut looked_at) = (Vec::new(), 0);
    while let Some(path) = left.pop() {
        looked_at += 1;
        if looked_at > MAX_LOOKED_AT {
            break;
        }
        if path.file_name().and_then(|of| of.to_str()).is_some_and(|of| is_called(of, name)) {
            found.push(path);
            continue; // what is below is part of it
        }
        let below = fs::read_dir(&path).into_iter().flatten().flatten();
        left.extend(below.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir())).map(|it| it.path()));
    }
    found.sort();
    match <[PathBuf; 1]>::try_from(found) {
        Ok([only]) => Ok(only),
        Err(none) if none.is_empty() => Err(Error::NoSuchCgroup(asked.to_owned())),
        Err(paths) => Err(Error::ManyCgroups { name: name.to_owned(), paths }),
    }
}

/// Whether a directory is a cgroup's of version 1. The kernel programs cannot ask who is in one.
pub fn is_version_1(directory: &Path) -> bool {
    directory.join(MEMBERS).exists() && !directory.join("cgroup.controllers").exists()
}

/// The container or systemd unit that a process belongs to, by the text of its `/proc/PID/cgroup`: the innermost one that has a name
/// people know.
pub fn unit(groups: &str) -> Option<String> {
    // `0::PATH` is version 2; version 1 has a hierarchy of systemd's own, and of each controller.
    let paths = || groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let of = |name: &str| paths().find(|(controllers, _)| *controllers == name);
    let all = of("name=systemd").into_iter().chain(of("")).chain(paths());
    all.filter_map(|(_, path)| path.rsplit('/').find_map(unit_name)).next()
}

/// What people call the cgroup of this directory, if it is a unit's or a container's.
fn unit_name(directory: &str) -> Option<String> {
    if let Some(id) = container_id(directory) {
        return Some(format!("container {}", &id[..SHORT_ID]));
    }
    let is_unit = directory.ends_with(".service") || directory.ends_with(".scope");
    (is_unit && directory != "init.scope").then(|| directory.to_owned())
}

/// The id of the container whose directory this is.
fn container_id(directory: &str) -> Option<&str> {
    let plain = UNITS.iter().find_map(|suffix| directory.strip_suffix(suffix)).unwrap_or(directory);
    // Container runtimes put their own name before the id: docker-ID.scope, cri-containerd-ID.scope.
    let id = plain.rsplit(['-', ':']).next().unwrap_or(plain);
    (id.len() == 64 && is_id(id)).then_some(id)
}

fn is_id(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a cgroup's directory is that of a unit or container called `name`.
fn is_called(directory: &str, name: &str) -> bool {
    let plain = UNITS.iter().find_map(|suffix| directory.strip_suffix(suffix)).unwrap_or(directory);
    let begins = |id: &str| name.len() >= ID_DIGITS && is_id(name) && id.starts_with(name);
    directory == name || plain == name || container_id(directory).is_some_and(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_belongs_to_the_innermost_unit_that_has_a_name() {
        let id = "0123456789abcdef".repeat(4);
        let of = |path: &str| unit(&format!("0::{path}\n"));
        let named = |text: &str| Some(text.to_owned());
        assert_eq!(of("/system.slice/redis.service"), named("redis.service"));
        assert_eq!(of("/system.slice/redis.service/worker"), named("redis.service"));
        assert_eq!(of(&format!("/system.slice/docker-{id}.scope")), named("container 0123456789ab"));
        assert_eq!(of(&format!("/kubepods/besteffort/pod1/{id}/app")), named("container 0123456789ab"));
        assert_eq!(of("/user.slice/user-1.slice/session-3.scope"), named("session-3.scope"));
        assert_eq!([of("/"), of("/init.scope"), of("/user.slice")], [None, None, None]);
        let hybrid = "12:cpu,cpuacct:/x.service\n1:name=systemd:/system.slice/y.service\n0::/\n";
        assert_eq!(unit(hybrid), named("y.service"));
        let old = "12:cpu,cpuacct:/system.slice/x.service\n0::/\n";
        assert_eq!(unit(old), named("x.service"));
        assert_eq!([unit(""), unit("no colon"), unit("0:"), unit("::")], [None, None, None, None]);
    }

    #[test]
    fn units_and_containers_are_found_by_their_names() {
        let root = tempfile::tempdir().unwrap();
        let id = "0123456789abcdef".repeat(4);
        let unit = root.path().join("system.slice/redis.service");
        let docker = root.path().join(format!("system.slice/docker-{id}.scope"));
        let pod = root.path().join("kubepods/besteffort/pod1").join(id.replace("0123", "fedc"));
        for path in [&unit, &docker, &pod] {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("cgroup.controllers"), "").unwrap();
            fs::write(path.join(MEMBERS), "").unwrap();
        }
        let found = |name: &str| find(Path::new(name), &[root.path().to_owned()]);
        assert_eq!([found("redis").unwrap(), found("redis.service").unwrap()], [unit.clone(), unit.clone()]);
        assert_eq!(found(&id[..12]).unwrap(), docker);
        assert_eq!(found(&id).unwrap(), docker);
        assert_eq!(found("fedc456789ab").unwrap(), pod);
        assert_eq!(found(unit.to_str().unwrap()).unwrap(), unit, "a path is what it is");
        assert!(!is_version_1(&unit));
        fs::remove_file(unit.join("cgroup.controllers")).unwrap();
        assert!(is_version_1(&unit));
        assert!(matches!(found("0123"), Err(Error::NoSuchCgroup(_))), "too short to be an id");
        assert!(matches!(found("nobody"), Err(Error::NoSuchCgroup(_))));
        fs::create_dir_all(root.path().join("user.slice/redis.service")).unwrap();
        let Err(error) = found("redis") else { panic!("two are called so") };
        assert!(error.to_string().contains("user.slice/redis.service"), "{error}");
    }
}
