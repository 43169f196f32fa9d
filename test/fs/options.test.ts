import t from 'tap'
import { parseMountOptions } from '../../src/fs/options.js'

const NONE = {
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
    [['ro'], {}],
    [['rw,nosuid,nodev,noatime,_netdev,x-systemd.automount,user,nofail'], {}],
    [['allow_other'], { allowOther: true }],
    [['allow_root', 'default_permissions'], { allowRoot: true, defaultPermissions: true }],
    [['uid=0,gid=4294967294'], { uid: 0, gid: 4294967294 }],
    [['uid=1', 'uid=2'], { uid: 2 }],
    [['umask=0'], { umask: 0 }],
    [['umask=0777'], { umask: 0o777 }],
    [['fsname=disk'], { fsname: 'disk' }],
    [['fsname=a=b,ro'], { fsname: 'a=b' }],
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
