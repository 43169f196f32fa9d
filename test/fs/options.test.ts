import t from 'tap'
import { parseMountOptions } from '../../src/fs/options.js'

const NONE = {
  access: undefined,
  forceShare: false,
  growable: false,
  commitSeconds: 5,
  allowOther: false,
  allowRoot: false,
  defaultPermissions: false,
  fsname: undefined,
  uid: undefined,
  gid: undefined,
  umask: undefined,
}

t.test('what is understood', async t => {
  const cases: [string[], object][] = [
    [[], {}],
    [[''], {}],
    [[',,'], {}],
    [['ro'], { access: 'ro' }],
    [['ro', 'rw'], { access: 'rw' }],
    [['rw,ro'], { access: 'ro' }],
    [['force-share,ro'], { access: 'ro', forceShare: true }],
    [['growable'], { growable: true }],
    [['commit=0'], { commitSeconds: 0 }],
    [['commit=86400'], { commitSeconds: 86400 }],
    [['nosuid,nodev,noatime,_netdev,x-systemd.automount,user,nofail,sync'], {}],
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
  ]
  for (const [lists, expected] of cases) {
    t.same(parseMountOptions(lists), { ...NONE, ...expected }, lists.join(' -o ') || 'nothing')
  }
})

t.test('what is refused', async t => {
  const cases = {
    suid: 'unknown mount option "suid"',
    'ro,frobnicate': 'unknown mount option "frobnicate"',
    'force-share': 'force-share is for reading only: -o ro,force-share',
    'rw,force-share': 'force-share is for reading only: -o ro,force-share',
    'ro,force-share,rw': 'force-share is for reading only: -o ro,force-share',
    force_share: 'unknown mount option "force_share"',
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
