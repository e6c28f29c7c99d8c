//! Resolves the user of a task: `user[:group]`, by name or number, with the image's `/etc/passwd`
//! and `/etc/group`.
//!
//! [`super::bundle`] calls [`resolve`]. Pure: the caller passes the texts of both files.

use crate::runtime::RuntimeError;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups: those that list the user as a member.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Resolves `user`. An empty user is root. A name must have an entry in `passwd`; a number may have
/// none. Without `:group` the task gets the user's own group and supplementary groups.
///
/// # Errors
/// If a name has no entry.
pub(super) fn resolve(user: &str, passwd: &str, group: &str) -> Result<Ids, RuntimeError> {
    let user = if user.is_empty() { "0" } else { user };
    let refuse = |reason| RuntimeError::User { user: user.to_owned(), reason };
    let (user_part, group_part) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        // A name that looks like a number counts as a number, as in every container engine.
        if user_part.parse::<u32>().is_ok() {
            fields.get(2) == Some(&user_part)
        } else {
            fields.first() == Some(&user_part)
        }
    });
    let field = |index: usize| entry.as_ref().and_then(|fields| fields.get(index)?.parse::<u32>().ok());
    let uid = match user_part.parse() {
        Ok(uid) => uid,
        Err(_) => field(2).ok_or_else(|| refuse("the image has no such user"))?,
    };
    let text = |index: usize| entry.as_ref().and_then(|fields| fields.get(index).copied());
    let home = text(5).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    let Some(group_part) = group_part else {
        return Ok(Ids { uid, gid: field(3).unwrap_or(0), groups: memberships(text(0), group), home });
    };
    let gid = match group_part.parse() {
        Ok(gid) => gid,
        Err(_) => group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&group_part))
            .and_then(|fields| fields.get(2)?.parse().ok())
            .ok_or_else(|| refuse("the image has no such group"))?,
    };
    Ok(Ids { uid, gid, groups: Vec::new(), home })
}

fn memberships(user: Option<&str>, group: &str) -> Vec<u32> {
    let Some(user) = user else { return Vec::new() };
    group
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            fields.get(3)?.split(',').any(|member| member == user).then(|| fields[2].parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nweb:x:33:34:web:/var/www:/usr/sbin/nologin\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:web,other\ndisk:x:6:\n";

    #[test]
    fn a_user_is_a_name_or_a_number() {
        let check = |user: &str, uid, gid, groups: &[u32], home: &str| {
            let want = Ids { uid, gid, groups: groups.to_vec(), home: home.to_owned() };
            assert_eq!(resolve(user, PASSWD, GROUP).expect("a known user"), want, "{user}");
        };
        check("root", 0, 0, &[], "/root");
        check("web", 33, 34, &[50], "/var/www");
        check("33", 33, 34, &[50], "/var/www");
        check("1000", 1000, 0, &[], "/");
        check("web:disk", 33, 6, &[], "/var/www");
        check("1000:1000", 1000, 1000, &[], "/");
    }

    #[test]
    fn refuses_unknown_names() {
        let check = |user: &str, want: &str| {
            let error = resolve(user, PASSWD, GROUP).expect_err("an unknown user or group");
            assert_eq!(error.to_string(), format!("user {user:?}: {want}"));
        };
        check("nobody", "the image has no such user");
        check("web:nogroup", "the image has no such group");
        check(":web", "the image has no such user");
    }
}
