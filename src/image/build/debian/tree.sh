# Makes the root file system from the tree. $1: the tree's tar, $2: the overlay's, $3: a folder to unpack
# them in, $4: the date of everything in seconds; the rest is mke2fs' command line.
set -eu
tree=$1 overlay=$2 folder=$3 date=$4
shift 4
tar --extract --file "$tree" --directory "$folder" --numeric-owner --preserve-permissions \
    --exclude='./dev/*' --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/cache/apt/*.bin' \
    --exclude='./var/lib/apt/lists/*_*' \
    --exclude='./etc/ssh/ssh_host_*' --exclude='./etc/resolv.conf' \
    --exclude='./etc/.resolv.conf.systemd-resolved.bak'
tar --extract --file "$overlay" --directory "$folder" --numeric-owner --preserve-permissions \
    --no-overwrite-dir
find "$folder" -newermt "@$date" -exec touch --no-dereference --date="@$date" {} +
exec "$@"
