import t from 'tap'
import { parseMountOptions } from '../../../src/fs/mounting/options.js'

const NONE = {
  access: undefined,
  forceShare: false,
  growable: false,
  manage: false,
  partitions: false,
  passthrough: 'auto',
  materializeBytes: 0,
  writeback: false,
  commitSeconds: 5,
  allowOther: false,
  allowRoot: false,
  defaultPermissions: false,
  fsname: undefined,
  uid: undefined,
  gid: undefined,
  umask: undefined,
  // nosuid and nodev, as in mount(2).
  flags: 6,
}

t.test('accepted options', async t => {
  const cases: [string[], object][] = [
    [[], {}],
    [[''], {}],
    [[',,'], {}],
    [['ro'], { access: 'ro' }],
    [['ro', 'rw'], { access: 'rw' }],
    [['rw,ro'], { access: 'ro' }],
    [['force-share,ro'], { access: 'ro', forceShare: true }],
    [['growable'], { growable: true }],
    [['writeback,commit=1'], { writeback: true, commitSeconds: 1 }],
    [['partitions,ro'], { access: 'ro', partitions: true }],
    [['commit=0'], { commitSeconds: 0 }],
    [['commit=86400'], { commitSeconds: 86400 }],
    [['nosuid,nodev,_netdev,x-systemd.automount,nofail,auto,noauto,nouser,defaults'], {}],
    [['x-a=b,X-c,x-d="e,f",comment=g,uhelper=h,helper=i,subtype=vimgfs'], {}],
    [['sync,noexec,noatime'], { flags: 6 | 8 | 16 | 1024 }],
    [['sync,noexec,noatime,async,exec,atime'], {}],
    [['suid'], { flags: 4 }],
    [['dev', 'suid'], { flags: 0 }],
    [['dev,suid,owner'], { flags: 6 }],
    [['user'], { flags: 6 | 8 }],
    [['users,exec,dev'], { flags: 2 }],
    [['user=alice'], { flags: 6 | 8 }],
    [['strictatime,lazytime'], { flags: 6 | (2 ** 24) | (2 ** 25) }],
    [['dirsync,nodiratime,relatime'], { flags: 6 | 128 | 2048 | (2 ** 21) }],
    [['allow_other'], { allowOther: true }],
    [['allow_root', 'default_permissions'], { allowRoot: true, defaultPermissions: true }],
    [['uid=0,gid=4294967294'], { uid: 0, gid: 4294967294 }],
    [['uid=1', 'uid=2'], { uid: 2 }],
    [['umask=0'], { umask: 0 }],
    [['umask=0777'], { umask: 0o777 }],
    [['fsname=disk'], { fsname: 'disk' }],
    [['fsname=a=b,ro'], { access: 'ro', fsname: 'a=b' }],
    [['fsname=one\\,two\\\\three,allow_other'], { fsname: 'one,two\\three', allowOther: true }],
    [['fsname=with space'], { fsname: 'with space' }],
    [['materialize=16M'], { materializeBytes: 16 * 2 ** 20 }],
    [['materialize=0'], { materializeBytes: 0 }],
    [['passthrough=off'], { passthrough: 'off' }],
    [['passthrough=off,passthrough=on'], { passthrough: 'on' }],
  ]
  for (const [lists, expected] of cases) {
    t.same(parseMountOptions(lists), { ...NONE, ...expected }, lists.join(' -o ') || 'nothing')
  }
})

t.test('refused options', async t => {
  const cases = {
    'suid=1': 'unknown mount option "suid=1"',
    'subtype=x': '-o subtype=x: the subtype is always vimgfs; leave it out',
    'ro,frobnicate': 'unknown mount option "frobnicate"',
    'force-share': 'force-share is for reading only: -o ro,force-share',
    'rw,force-share': 'force-share is for reading only: -o ro,force-share',
    'ro,force-share,rw': 'force-share is for reading only: -o ro,force-share',
    force_share: 'unknown mount option "force_share"',
    'materialize=much': '-o materialize takes a size such as 512M, 20G or 1.5T, not "much"',
    'passthrough=yes': '-o passthrough=yes: it takes off, auto or on',
    passthrough: '-o passthrough needs a value: -o passthrough=…',
    'growable=1': 'unknown mount option "growable=1"',
    commit: '-o commit needs a value: -o commit=…',
    'commit=1s': '-o commit=1s: it takes seconds, up to 86400',
    'commit=86401': '-o commit=86401: it takes seconds, up to 86400',
    'ro=1': 'unknown mount option "ro=1"',
    'allow_other=1': 'unknown mount option "allow_other=1"',
    constructor: 'unknown mount option "constructor"',
    'allow_other,allow_root': 'allow_other and allow_root exclude each other',
    uid: '-o uid needs a value: -o uid=…',
    'fsname=': '-o fsname needs a value: -o fsname=…',
    'uid=root': '-o uid=root: it takes a number',
    'uid=-1': '-o uid=-1: it takes a number',
    'gid=1e3': '-o gid=1e3: it takes a number',
    // 2^32 - 1 means "unchanged" to the kernel.
    'uid=4294967295': '-o uid=4294967295: it takes a number',
    'umask=1000': '-o umask=1000: it takes an octal number up to 777',
    'umask=9': '-o umask=9: it takes an octal number up to 777',
    'umask=0o22': '-o umask=0o22: it takes an octal number up to 777',
  }
  for (const [list, message] of Object.entries(cases)) {
    t.throws(() => parseMountOptions([list]), { name: 'UsageError', message }, list)
  }
})
